"""Residents under a memory budget, as the server's process sees them: admission, leases, loads, evictions."""
