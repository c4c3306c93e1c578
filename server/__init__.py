"""The HTTP server and the `coe` command. Packages, lowest first: roster, runtime, api, commands."""
