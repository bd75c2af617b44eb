"""The teacher, which answers hard questions and writes short texts: in this process, behind a network, or recorded."""
