"""Decides where chunks go. It moves nothing itself: it publishes what clients and chunk servers act on."""
