"""Settings and options tried against each other on the pocket model, by the protocol of docs/default-recipe.md.

    python -m benchmarks.trials FOLDER --phase tuning      # every candidate on the tuning subjects
    python -m benchmarks.trials FOLDER --phase test        # those chosen, on the test subjects, three seeds
    python -m benchmarks.trials FOLDER --phase test --table benchmarks/results/default_recipe.json
    python -m benchmarks.trials.style FOLDER               # styles in place of things

Run again on the same folder it goes on. `candidates` lists what is tried, `options` and `drawing` hold what was tried
and is not in the package.
"""
