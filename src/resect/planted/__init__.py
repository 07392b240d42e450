"""The localisation benchmark: does a method find weights that are known to carry a behaviour?"""
