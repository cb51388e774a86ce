"""What a ladder of studies says: where the order of two arms flips, and when a teacher pays, and where a curve leads, and what to buy.

A ladder is one study run at several values of one key, its rungs. Rungs are fixed, seeds are random, and the same
seeds run at every rung, so a seed's differences belong together along the whole ladder. One file per question:

crossover.py  at which value does the order of two arms flip?
breakeven.py  over how many students must a teacher's cost be shared before distilling pays?
scaling.py    what will an arm score at a budget that was not run, and did that hold for the largest rung?
decision.py   after a pilot, which arm to buy at the full budget, how sure that is, and what it costs to be surer?
exponents.py  curves of every exponent at once, the arithmetic under scaling.py and posterior.py
posterior.py  what a pilot leaves possible, as a distribution
rungs.py      a ladder's axis and scores, checked
words.py      how amounts on a ladder are written
"""
