"""What a node of a cluster does. It travels there by value, since the node may hold another localora, or none.

So nothing here may import the rest of localora, and nothing does that takes long: the standard library and NumPy only.
"""
