"""The survival session: kill -9 at random points, hundreds of times; nothing is lost or done twice."""
