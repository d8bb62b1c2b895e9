"""Forecasts with honest intervals from the series of a CSV: `python -m project_ts_forecast.train --help`."""
