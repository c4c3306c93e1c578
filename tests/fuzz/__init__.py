"""Fuzzing of what strangers' files may hold: mutated models, masks, profiles, heads, rosters and corpora through every
command that reads them.

A case is one mutated file and one command; it passes when the command ends by itself in bounded time and memory, with
an exit code of its own, says why where it fails, and prints neither a stack nor control characters.
A server is stopped once it has announced itself. `make fuzz` runs cases for a while; everything follows from the seed
and the case's number, and what fails is kept with its command and output.
"""
