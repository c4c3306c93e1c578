"""The commands of `coe`, a module each."""
