"""Ways to servers of other kinds: each module below is a transport, which a URL's scheme chooses.

`transport` is what a transport has to be, `registry` finds it, and `client` makes calls through one or several.
"""
