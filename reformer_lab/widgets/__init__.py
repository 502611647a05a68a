"""One function per explorer: values of controls in, picture out; `controls` describes what they may be."""
