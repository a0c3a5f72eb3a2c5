"""Simulated data sets in the store, and the ceiling that no re-ranker can pass on them."""

import time
from dataclasses import asdict

import numpy as np
import polars as pl

from curate.evaluation import RankerMetrics, put_evaluation
from curate.ingest import IngestSettings, IngestSummary, put_dataset
from curate.metrics import score_ranks
from curate.simulator import Simulator, SimulatorSettings
from store import Store
