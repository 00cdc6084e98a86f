"""Run suites, gates and matrices. This package has all side effects of a run."""
