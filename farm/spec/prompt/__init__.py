"""The prompt language of stable-diffusion-webui 1.8: what a prompt says at every step.

A prompt is read in this order, each stage in a module of its own:

1. ``comments``: ``#`` and what follows it is cut out.
2. :mod:`farm.spec.networks`: ``<lora:...>`` tags are cut out.
3. ``composition``: ``AND`` divides it into parts with weights.
4. ``editing``: ``[from:to:when]`` and ``[a|b]`` make a text of each part, for each step.
5. ``emphasis``: ``(a:1.3)``, ``[a]`` and ``BREAK`` divide a text into weighted segments.
6. ``tokens`` and ``chunks`` divide it further, into what a text encoder reads at a time.

``table`` does 3 and 4 for a number of steps, ``explanation`` all of it for people. No prompt is
refused for its brackets: what is not well-formed is text, as in webui.
"""
