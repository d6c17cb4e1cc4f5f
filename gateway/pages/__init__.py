"""The web pages: what a browser sees of the same operations. They hold no rule of their own."""
