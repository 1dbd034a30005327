"""What runs Apportion elsewhere than on a laptop, and what checks it: images, Compose, the chart, observability."""
