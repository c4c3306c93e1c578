"""`coe pull`: fetch specialists' models from the Hugging Face hub into the models folder.

files chooses what is to be fetched, download fetches it, command does both for a roster.
"""
