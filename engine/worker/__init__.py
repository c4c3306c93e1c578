"""The process that holds a resident: its batch loop, KV slots and offload; and the dry run that predicts its memory."""
