"""HTML reports: one template and style sheet, images, charts and pages."""
