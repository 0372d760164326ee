"""Recipes: how an image is made, each written once, top to bottom, like a script.

A recipe yields requests and is sent their results. It knows no batching, threads, devices or
queues.
"""
