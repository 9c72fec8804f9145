def fast_tiles(operands):
    return None
