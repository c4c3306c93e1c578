"""What the dialects share: fields, tools, histories and formats of their bodies, and pieces of their answers."""
