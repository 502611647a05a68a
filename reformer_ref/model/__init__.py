"""The whole Reformer: language model, encoder-decoder, configuration, and weights of other
libraries.
"""
