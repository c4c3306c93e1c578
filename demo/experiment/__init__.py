"""An experiment that repeats the model cards' claims on the tiny parent: design, measurements, findings, report."""
