"""Load generators: each is a process of its own, apart from the server, and says which tool it is."""
