"""Which nucleotides of a sequence are masked, as intervals: base, span, motif, npmi and pair are one mechanism.

    candidates.py   the intervals that a level offers for a sequence, in the order in which they are tried
    words.py        finding the words of a list in sequences
    pairs.py        partners of a dot-bracket structure
    budget.py       how many nucleotides, and which candidates: the first that fit, greedily; a top-up with single ones
    levels.py       which level a sequence gets, by weights and by the progress of the run
    engine.py       all of it, for a packed batch
    corruption.py   what stands in the place of a selected token
    statistics.py   what the levels do to a corpus, measured before a run

Numpy, pure functions of letters and keys; no vocabulary but letters, no configuration files, no torch.
"""
