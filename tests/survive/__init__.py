"""The survival session: kill -9 at random points, hundreds of times, and nothing may be lost or done twice."""
