"""What a running model is watched with: windows of recent values, statistics of drift, and alarms.

window = SlidingWindow(512)
window.push(12.5)
alarms = AlarmManager().add(Alarm("lat_p95", threshold=120.0, direction=">=", min_samples=100, consecutive=3))
fired = alarms.run({"lat_p95": (window.quantile(0.95), len(window))})   # [] or the events that fired
"""

from __future__ import annotations

from common.alarms import Alarm as Alarm
from common.alarms import AlarmManager as AlarmManager
from common.drift import holm as holm
from common.drift import ks as ks
from common.drift import psi as psi
from common.mmd import mmd as mmd
from common.window import SlidingWindow as SlidingWindow
