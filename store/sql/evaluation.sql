-- name: evaluated
-- All figures that a data set has.
select split, ranker, metric, value, n from evaluations where dataset = $dataset
