"""Quality against tokens: curves of scores and rules, their areas, thresholds on other images."""
