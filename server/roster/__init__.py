"""The roster (specialists.yaml): its text, its rules, its values, and where the models of its entries lie."""
