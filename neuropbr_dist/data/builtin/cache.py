class BuiltinCache:
    pass
