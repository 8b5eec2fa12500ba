"""How the transformer's blocks run on the ranks: by the native engine, or by ColossalAI.

`base.py` has the interface of an engine, `choice.py` chooses one, `native.py` and `colossal/engine.py` implement it.
ColossalAI is imported inside functions, so only where it was chosen.
"""
