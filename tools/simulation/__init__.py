"""A run of tokenize_corpus on a cluster, in virtual time: who works on what is decided by the real ShardQueue.

`clock` events, `chances` what is drawn, `cluster` what nodes and actors do, `driver` what the run decides, `ledger`
where paid time went, `run` one simulation, `costs` its price, `sweep` many of them, `plots` their figure. Knows no Ray.
"""

from tools.simulation.costs import Bill, make_bill
from tools.simulation.run import Outcome, simulate
from tools.simulation.sweep import Row, format_tables, make_row, sweep, to_json

__all__ = ["Bill", "Outcome", "Row", "format_tables", "make_bill", "make_row", "simulate", "sweep", "to_json"]
