"""One function per widget: slider values in, picture out. Each says by `controls` what its sliders
are.
"""
