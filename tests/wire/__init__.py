"""The app over real sockets: a real uvicorn between a real client and a scripted upstream."""
