"""How good a model of signals is, in numbers: functions over arrays, each with its source. The same for every side."""
