"""The ColossalAI engine: its tensor parallel and its sequence parallel around our networks, by policies and subclasses.

Loaded only where engine=colossalai. `require` is the part that starts without torch and without ColossalAI.
"""
