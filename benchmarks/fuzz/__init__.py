"""Damaged inputs of every kind, and the verbs that read them: each is read, or refused in one line, and none harmed.

An input is a fresh copy of something intact with one of its files damaged, as (seed, kind, number) say. The verbs run
in a process of their own, which is ended after 10 seconds and gets no more memory than an intact input would need.
"""
