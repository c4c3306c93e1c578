"""`coe fit`: what of a parent fits the memory: the whole of it in each quantisation, fewer experts, experts in host
memory. The owner looks, predicts and prints; rows and verdict are pure.
"""
