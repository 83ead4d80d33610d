"""Images and captions of any origin -> cleaned records, by one Apache Beam pipeline.

    options.py    the flags, as one dataclass; check.py refuses wrong ones
    readers/      input of each kind -> units of examples, through the sources of training; READERS
    steps/        one file for each step; STEPS gives their order
    staging.py    reads and cleans a unit once, into a file that a re-run uses again
    graph.py      the pipeline: units -> rows -> steps -> shards
    report.py     what each step left out, as JSON and as a page
    run.py        from flags to the finished folder

Only graph.py and run.py know Beam: readers and steps are functions of their arguments.
"""
