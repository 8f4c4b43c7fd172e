"""What is measured along a training: a file a measurement, and one list of them (``record``), which trainings and tracker walk.

A measurement takes a ``moment``: networks at one step, their top eigenpairs, their random streams, the settings of the run. The
functions beside it take a ``curvature.Point`` and a few settings, and can be called alone. May import what is below it, Hessians,
eigen-solver and networks; training and tracker import it.
"""
