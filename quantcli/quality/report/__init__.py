"""A report on files of one model as one HTML page, and as a JSON document.

`content` has the data, which `files` reads from headers. Each chart is a pure function from data to elements, in a file of
its own, and `page` puts them into `report.html`. Charts have horizontal positions in percent and vertical ones in pixels:
they have any width, and their text one size.
"""
