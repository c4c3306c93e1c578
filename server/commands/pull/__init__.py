"""`coe pull`: fetch specialists' models from the Hugging Face hub into the models folder.

files chooses what is to be fetched, download fetches it, command does both for a roster. Of a published specialist that
is to be a mask ranges fetches parts of its model alone, published reads a mask off them, masks does so for a roster.
"""
