"""Images and captions of any origin -> cleaned records, as one Apache Beam pipeline.

    options.py    the flags, checked once
    readers/      what people have -> units of examples; READERS
    steps/        one file a step; STEPS says their order
    staging.py    a unit, read and cleaned once, as a file that a re-run finds again
    graph.py      the pipeline: units -> rows -> steps -> shards
    report.py     what each step left out, as JSON and as a page
    run.py        the order of events, from flags to the finished folder

Only graph.py and run.py know Beam: readers and steps are functions of their arguments.
"""
