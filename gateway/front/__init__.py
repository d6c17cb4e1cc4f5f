"""Inference over HTTP behind nginx, for models of this host: event loops that ask the executors and wait for many answers at once.

They answer only what they can answer from memory and over the local lane. Everything else they hand back to nginx, which asks the uWSGI
workers: those have the same routes, and wait for whatever they must.
"""
