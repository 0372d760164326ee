"""A farm on paper: the dispatcher's own rules, under a clock that jumps from event to event.

``trace`` is what came in when, ``generator`` makes such up, ``world`` runs one, ``policies`` are
the rules to compare, ``bounds`` what no rule can do better, ``results`` what came of it.
"""
