"""Two random views of every image: what is drawn, and how it is applied."""
