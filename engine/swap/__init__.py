"""How one resident becomes another specialist in place: groups that can, the plan of a swap, carrying it out, turns."""
