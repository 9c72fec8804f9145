"""The ops of a unit, tile by tile, in the reference arithmetic. Needs NumPy: nothing else of core imports it while
it loads.
"""
