"""What a study will take before anything is spent: FLOPs exactly; time, memory, energy and money as expected.

One file per question: `outline` reads the study, `steps` divides the budget, `evaluation` prices the judging,
`calibrate` measures speed here, `speed` and `scaling` predict it elsewhere on `machines`, `memory` and `disk` say
what fits, `bill` turns seconds into money, `estimate` puts it together, `advice` warns and `show` prints.
"""
